"""``python -m jcv2_trainer``, as ``accelerate launch -m`` wants it."""

from jcv2_trainer.cli.app import main

main()
