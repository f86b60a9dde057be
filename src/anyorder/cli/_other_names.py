"""What options are called elsewhere, in transformers' `Trainer`, its users and the research code of this family."""

from __future__ import annotations

from collections.abc import Collection

_NAMES = {
    "data": "data_path train_file train_data train_path dataset dataset_name dataset_path data_dir data_file datasets",
    "dataset": "data data_path dataset_name dataset_path",
    "validation": "validation_file eval_file eval_data eval_dataset val_data val_file validation_data eval_path",
    "output": "output_dir output_path output_file save_dir save_path out_dir out logging_dir",
    "init": "model_name_or_path model model_name model_path base_model pretrained_model_name_or_path checkpoint ckpt",
    "model": "model_name_or_path model_name model_path base_model pretrained_model_name_or_path checkpoint ckpt init",
    "tokenizer": "tokenizer_name tokenizer_path tokenizer_name_or_path tokenizer_config",
    "steps": "max_steps num_steps train_steps max_iters diffusion_steps",
    "epochs": "num_train_epochs num_epochs n_epochs max_epochs",
    "rope_scaling": "rope_scaling_type rope_type rope_scaling_factor",
    "batch_size": "per_device_train_batch_size per_device_eval_batch_size micro_batch_size train_batch_size "
    "eval_batch_size batchsize",
    "accumulation": "gradient_accumulation_steps grad_accum grad_accumulation_steps accumulate_grad_batches",
    "learning_rate": "lr",
    "length": "max_seq_length max_length max_seq_len seq_length seq_len sequence_len cutoff_len block_size "
    "model_max_length context_length",
    "warmup": "warmup_steps warmup_ratio num_warmup_steps",
    "schedule": "lr_scheduler_type lr_scheduler scheduler",
    "clip": "max_grad_norm grad_clip gradient_clip_val max_norm",
    "precision bfloat16": "bf16",
    "precision float16": "fp16 use_amp",
    "precision": "mixed_precision dtype torch_dtype",
    "activation_checkpointing": "gradient_checkpointing",
    "log_every": "logging_steps log_interval",
    "evaluate_every": "eval_steps eval_interval eval_every",
    "save_every": "save_steps save_interval checkpoint_interval",
    "keep": "save_total_limit",
    "resume": "resume_from_checkpoint",
    "workers": "dataloader_num_workers num_workers preprocessing_num_workers",
    "template": "chat_template prompt_template",
    "lora_rank": "lora lora_r r use_lora use_peft",
    "wandb": "report_to use_wandb wandb_project wandb_run_name",
    "random_length_prob": "random_length",
    "width": "hidden_size d_model n_embd dim",
    "layers": "num_hidden_layers num_layers n_layers n_layer",
    "heads": "num_attention_heads num_heads n_heads n_head nhead",
    "mask_token": "mask_token_id mask_id",
    "shares": "mixture weights",
    "lemmatize": "lemmaize lemmatise lemmas lemma",
    "prompts_file": "prompt_file input_file",
    "max_new_tokens": "gen_length max_gen_len max_tokens max_length n_predict",
    "num_samples": "num_return_sequences n",
    "num_beams": "beams beam_size beam_width",
    "temperature": "do_sample temp",
    "stop": "stop_strings stop_sequences",
    "remasking_strategy": "remasking alg",
    "cfg_scale": "cfg guidance_scale",
    "order": "decoding_order generation_order",
    "dtype": "torch_dtype precision bf16 fp16",
    "attention": "attn_implementation",
    "max_samples": "limit num_samples max_examples",
    "shots": "num_fewshot num_shots n_shots fewshot",
    "num_paraphrases": "n_paraphrases",
}
"""For each option of ours, what others call it; "precision bfloat16" is an option with its value."""


def other_name(option: str, known: Collection[str]) -> str | None:
    """What an option of another program is called here, if the command has that.

    Args:
        option: the name without dashes.
        known: options of the command.
    """
    for ours, theirs in _NAMES.items():
        if option in theirs.split() and ours.partition(" ")[0] in known:
            return ours
    return None


def other_names() -> dict[str, list[str]]:
    """For each option of ours, the names that lead to it."""
    return {ours: theirs.split() for ours, theirs in _NAMES.items()}
