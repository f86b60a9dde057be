"""Fine-tune a checkpoint with LoRA: PEFT and transformers' Trainer, on a few lines of text.

python examples/lora.py CHECKPOINT [OUTPUT_FOLDER]
"""

import sys
import tempfile

import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments

import anyorder
from anyorder import AnyOrderForCausalLM

LINES = [
    "Red sky at night, sailor's delight.",
    "Red sky in the morning, sailor's warning.",
    "Rain before seven, fine by eleven.",
    "When the dew is on the grass, rain will never come to pass.",
]
PROMPT = "Red sky"


def main(checkpoint: str, output: str | None = None) -> None:
    torch.manual_seed(0)
    model, tokenizer = anyorder.load(checkpoint)
    assert tokenizer is not None, "the checkpoint comes without a tokenizer"

    # The same network, as transformers' tools want it: nothing is copied.
    face = AnyOrderForCausalLM.of(model)
    adapted = get_peft_model(face, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    adapted.print_trainable_parameters()

    rows = [torch.tensor(tokenizer(line)["input_ids"]) for line in LINES]
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch, max_steps=20, per_device_train_batch_size=1, gradient_accumulation_steps=len(rows),
            learning_rate=1e-2, logging_steps=5, save_strategy="no", report_to=[], disable_tqdm=True,
            dataloader_pin_memory=False,
        )  # fmt: skip
        dataset = [{"input_ids": ids, "labels": ids} for ids in rows]
        Trainer(model=adapted, args=arguments, train_dataset=dataset).train()  # type: ignore[arg-type]

    # With the adapter folded into the weights it is a checkpoint like any other.
    merged = adapted.merge_and_unload().eval()
    assert isinstance(merged, AnyOrderForCausalLM)
    print(PROMPT + str(anyorder.generate(merged, tokenizer, PROMPT, max_new_tokens=24).text))
    if output is not None:
        anyorder.save(merged, tokenizer, output)
        print(f"written to {output}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
