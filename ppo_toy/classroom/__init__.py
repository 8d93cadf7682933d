"""The instructor's tools: student editions, checks, and grading through nbval."""

# Environment variable: the file of cases; set in the cage only. The processes around an answer
# read it here, as importing torch would take them longer than all they do.
HIDDEN = "PPO_TOY_HIDDEN_CASES"
