"""The command ``jcv2-finetune``."""
