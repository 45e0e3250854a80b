"""``python -m jcv2_trainer``, for ``accelerate launch -m``."""

from jcv2_trainer.cli.app import main

main()
