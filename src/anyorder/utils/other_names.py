"""What options are called elsewhere: transformers and its `Trainer`, TRL, axolotl, LLaMA-Factory, vLLM, llama.cpp, and
the research code of this family.
"""

from __future__ import annotations

from collections.abc import Collection

_NAMES = {
    "data": (
        "data_path train_file train_data train_path dataset dataset_name dataset_path data_dir data_file "
        "datasets train_files train_data_path dataset_file data_files"
    ),
    "dataset": "data data_path dataset_name dataset_path",
    "validation": "validation_file eval_file eval_data eval_dataset val_data val_file validation_data eval_path",
    "output": (
        "output_dir output_path output_file save_dir save_path out_dir out logging_dir save_to outdir "
        "output_folder result_dir"
    ),
    "init": (
        "model_name_or_path model model_name model_path base_model pretrained_model_name_or_path checkpoint "
        "ckpt model_id base_model_name_or_path from_pretrained pretrained init_from"
    ),
    "model": (
        "model_name_or_path model_name model_path base_model pretrained_model_name_or_path checkpoint ckpt "
        "init model_id base_model_name_or_path hf_repo hf_model m"
    ),
    "tokenizer": "tokenizer_name tokenizer_path tokenizer_name_or_path tokenizer_config",
    "steps": (
        "max_steps num_steps train_steps max_iters diffusion_steps num_inference_steps denoising_steps sampling_steps"
    ),
    "epochs": "num_train_epochs num_epochs n_epochs max_epochs",
    "rope_scaling": "rope_scaling_type rope_type rope_scaling_factor",
    "batch_size": (
        "per_device_train_batch_size per_device_eval_batch_size micro_batch_size train_batch_size "
        "eval_batch_size batchsize max_num_seqs bsz train_micro_batch_size_per_gpu per_gpu_train_batch_size"
    ),
    "accumulation": (
        "gradient_accumulation_steps grad_accum grad_accumulation_steps accumulate_grad_batches "
        "gradient_accumulation grad_acc_steps accumulation_steps"
    ),
    "learning_rate": "lr peak_lr max_lr",
    "length": (
        "max_seq_length max_length max_seq_len seq_length seq_len sequence_len cutoff_len block_size "
        "model_max_length context_length sequence_length max_sequence_length max_model_len n_ctx ctx_size "
        "max_position_embeddings"
    ),
    "warmup": "warmup_steps warmup_ratio num_warmup_steps warmup_iters lr_warmup_steps",
    "schedule": "lr_scheduler_type lr_scheduler scheduler lr_schedule lr_decay_style",
    "clip": (
        "max_grad_norm grad_clip gradient_clip_val max_norm clip_grad gradient_clipping gradient_clip clip_grad_norm"
    ),
    "precision bfloat16": "bf16",
    "precision float16": "fp16 use_amp half",
    "precision": "mixed_precision dtype torch_dtype amp",
    "activation_checkpointing": "gradient_checkpointing use_gradient_checkpointing recompute",
    "log_every": "logging_steps log_interval log_steps log_every_n_steps",
    "evaluate_every": "eval_steps eval_interval eval_every evaluation_steps val_steps eval_strategy",
    "save_every": "save_steps save_interval checkpoint_interval save_freq save_strategy checkpoint_every",
    "keep": "save_total_limit max_to_keep keep_checkpoints",
    "resume": "resume_from_checkpoint resume_from auto_resume_from_checkpoints",
    "workers": "dataloader_num_workers num_workers preprocessing_num_workers num_proc dataset_num_proc",
    "template": "chat_template prompt_template chat_template_path",
    "lora_rank": "lora lora_r r use_lora use_peft lora_dim rank",
    "wandb": "report_to use_wandb wandb_project wandb_run_name",
    "random_length_prob": "random_length",
    "width": "hidden_size d_model n_embd dim",
    "layers": "num_hidden_layers num_layers n_layers n_layer",
    "heads": "num_attention_heads num_heads n_heads n_head nhead",
    "mask_token": "mask_token_id mask_id",
    "shares": "mixture weights mixture_weights probs",
    "lemmatize": "lemmaize lemmatise lemmas lemma",
    "prompts_file": "prompt_file input_file file prompts",
    "max_new_tokens": (
        "gen_length max_gen_len max_tokens max_length n_predict max_output_tokens max_completion_tokens "
        "num_predict new_tokens max_gen_toks"
    ),
    "num_samples": "num_return_sequences n best_of num_generations samples",
    "num_beams": "beams beam_size beam_width use_beam_search",
    "temperature": "temp",
    "stop": "stop_strings stop_sequences stop_words stop_sequence reverse_prompt",
    "remasking_strategy": "remasking alg",
    "cfg_scale": "cfg guidance_scale",
    "mask_samples": "mc_num mc_samples num_mc_samples nll_samples",
    "chat": "apply_chat_template",
    "system": "system_instruction system_prompt",
    "order": "decoding_order generation_order mode mode objective writing_order",
    "dtype": "torch_dtype precision bf16 fp16 outtype",
    "attention": "attn_implementation attn attention_backend attn_impl",
    "max_samples": "limit num_samples max_examples",
    "shots": "num_fewshot num_shots n_shots fewshot",
    "num_paraphrases": "n_paraphrases",
    "weight_decay": "wd",
    "last_answer_only": "mask_history",
    "tensorboard": "use_tensorboard",
    "seed": "random_seed rng_seed manual_seed data_seed",
    "kv_heads": "num_key_value_heads n_kv_heads num_kv_heads",
    "source": "model model_path model_name_or_path checkpoint input input_file infile data data_path",
    "target": "output output_dir output_path output_file outfile out save_path save_dir",
    "force": "overwrite overwrite_output_dir exist_ok",
    "prompt": "text input",
    "repetition_penalty": "repeat_penalty rep_pen",
    "gap_tokens": "gap_length mask_length infill_length",
    "draft": "num_speculative_tokens speculative_tokens draft_max num_assistant_tokens",
    "sampling_method": "sampler generation_method",
    "preset": "sampler diffusion_sampler",
    "block_length": "block_size blocklength",
    "threshold": "confidence_threshold",
    "compile": "torch_compile use_compile",
    "compile never": "enforce_eager",
    "device": "device_map",
    "device cpu": "use_cpu no_cuda",
    "dtype int8": "load_in_8bit",
    "attention flash": "flash_attn flash_attention use_flash_attn use_flash_attention_2",
    "revision": "model_revision branch",
    "stream": "streaming streamer",
    "show": "verbose",
    "objective": "order mode training_objective loss_type",
    "orders": "order mode",
    "mode": "order",
    "temperature 1.0": "do_sample",
}
"""For each option of ours, what others call it; "precision bfloat16" is an option with its value."""


def other_name(option: str, known: Collection[str]) -> str | None:
    """Return what an option of another program is called here, if the command has that.

    Args:
        option: the name without dashes.
        known: options of the command.
    """
    plain = option.lower().replace("-", "_")
    for ours, theirs in _NAMES.items():
        if plain in theirs.split() and ours.partition(" ")[0] in known:
            return ours
    return None


def other_names() -> dict[str, list[str]]:
    """Return for each option of ours the names that lead to it."""
    return {ours: theirs.split() for ours, theirs in _NAMES.items()}
