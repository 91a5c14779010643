"""A small Llama trained by Hugging Face's `Trainer` on the processor, to try the hook by hand.

    pip install transformers accelerate && python tests/client/train_huggingface.py FOLDER

Prints what the hook sent, and fails where that is not what the training did. No test runs it: transformers
takes more than 60 MB.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from flopwatch.hooks.huggingface import callback

TOKENS, BATCH, STEPS, WIDTH, LAYERS, VOCABULARY = 32, 2, 6, 64, 2, 100


def read(agent: socket.socket, messages: list[dict[str, Any]]) -> None:
    while not messages or messages[-1].get("event") != "exit":
        messages.append(json.loads(agent.recv(4096)))


def main(folder: str) -> None:
    path = str(Path(folder) / "jobs.sock")
    os.environ["FLOPWATCH_SOCKET"] = path
    agent = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    agent.bind(path)
    messages: list[dict[str, Any]] = []
    reader = threading.Thread(target=read, args=(agent, messages))
    reader.start()
    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
    )
    rows = [{"input_ids": (ids := torch.randint(VOCABULARY, (TOKENS,))), "labels": ids}] * 64
    arguments = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=2,
        max_steps=STEPS,
        save_steps=3,
        eval_strategy="steps",
        eval_steps=2,
        use_cpu=True,
        report_to=[],
    )
    Trainer(
        model=LlamaForCausalLM(config),
        args=arguments,
        train_dataset=rows,
        eval_dataset=rows[:4],
        callbacks=[callback(seq_len=TOKENS, job="tiny-llama")],
    ).train()
    reader.join()
    last, events = messages[-1], [m["event"] for m in messages if "event" in m]
    sys.stdout.write(json.dumps({"events": events, "last": last}, indent=2) + "\n")
    parameters = LAYERS * (3 * WIDTH * WIDTH + 6 * WIDTH * WIDTH + 2 * WIDTH) + WIDTH
    parameters += VOCABULARY * WIDTH
    multiplied = 6 * (parameters - (2 * LAYERS + 1) * WIDTH)  # norms multiply no matrix
    expected = STEPS * 2 * BATCH * TOKENS * (multiplied + 6 * LAYERS * WIDTH * TOKENS)
    ratio = last["model_flops_total"] / expected
    sys.stdout.write(f"declared / formula: {ratio:.6f}\n")
    wanted = ["start", "eval", "checkpoint", "eval", "eval", "checkpoint", "exit"]
    if abs(ratio - 1) > 1e-6 or events != wanted or last["convention"] != "causal_half":
        raise SystemExit(1)


if __name__ == "__main__":
    main(sys.argv[1])
