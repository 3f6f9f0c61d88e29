"""Trains a Transformer language model on sentences, or on documentation.

    horovodrun -np 2 python -m trainers.lm1b --dataset=pydocs
    horovodrun -np 8 python -m trainers.lm1b --preset=zhang_lm1b

--dataset=pydocs, the standard library's documentation, is cut into 2,000 kinds
of tokens and read by a Transformer of width 64. On lm1b: not yet run.
"""

from trainers import command_line
from trainers.configs.lm1b import TRAINER

if __name__ == "__main__":
    command_line.main(TRAINER, __doc__)
