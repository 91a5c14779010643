"""Hooks for trainers that people use; each module imports its framework only when it is asked for a hook.

    trainer = transformers.Trainer(..., callbacks=[flopwatch.hooks.huggingface.callback(seq_len=4096)])
    trainer = lightning.Trainer(..., callbacks=[flopwatch.hooks.lightning.callback(seq_len=4096)])

A hook never stops a training: where a model cannot be counted it warns once and stays silent.
"""
