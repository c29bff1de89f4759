"""A training in a process of its own, as a shell starts it: `train_process.py 116 2d 0 ...` is
`lgesynth train 116 2d 0 ...` on one core and without nnU-Net's figures, which take seconds each."""

import multiprocessing
import signal
import sys

if __name__ == "__main__":         # not again in the process that fills the pool, which is spawned
    signal.signal(signal.SIGINT, signal.default_int_handler)      # background jobs ignore it
    multiprocessing.cpu_count = lambda: 1
    from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as stock

    from nnunet_lgesynth.cli import main

    stock.nnUNetTrainer.plot_network_architecture = lambda _: None
    stock.MetaLogger.plot_progress_png = lambda *_: None
    sys.exit(main(["train", *sys.argv[1:]]))
