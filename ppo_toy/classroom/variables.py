"""The environment variables by which a notebook, a check and a cage hear of each other.

They stand apart, so that what only passes them on need not import torch.
"""

LANGUAGE = "PPO_TOY_LANGUAGE"  # name of a table of messages
SEED = "PPO_TOY_CHECK_SEED"  # of the random inputs, 0 by default
HIDDEN = "PPO_TOY_HIDDEN_CASES"  # the file of cases; set in the cage only
