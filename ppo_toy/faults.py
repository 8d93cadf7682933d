"""The names of what can be wrong with a gradient, and what tells them apart."""

FAULTS = {
    "prompts treated differently": "Right on some prompts and wrong on others.",
    "prompts mixed up": "Right on each prompt alone, wrong where a batch holds several.",
    "padding leaked": "What the policies say behind the end token changes the gradient.",
    "temperature missing": "Tokens are scored at another temperature than they were drawn at.",
    "another reference": "The penalty alone does not rest at the reference it was given.",
    "reward has no gradient": "Any rewards give the same expected gradient.",
    "reward sign flipped": "The reward is made smaller; with the KL's: was it a loss?",
    "reward clipped": "Rewards beyond a bound count as the bound.",
    "reward on the last token only": "The tokens that lead to the last one earn nothing.",
    "reward divided by spread": "Seven times the reward pulls no harder, so beta is too weak.",
    "advantages whitened": "Seven times the reward and the KL together pull no harder.",
    "own response in the baseline": "A response alone in its batch has nothing left to learn from.",
    "reward behind the end": "A response that ends early does not get its reward.",
    "token mean": "Responses are divided by a number of tokens: short ones count for more.",
    "KL never applied": "Neither the gradient nor the value knows beta.",
    "KL under no_grad": "The value knows beta, the gradient does not.",
    "k1 as loss": "beta adds noise of mean 0, in which there is no reference.",
    "KL as baseline": "A whole batch is charged the same KL, which is a baseline.",
    "KL sign flipped": "The KL is made larger.",
    "KL averaged over tokens": "The KL is a mean over tokens: beta shrinks with the length.",
    # Also k2, k3+ (straight through) and ratio * k1 in the loss, and own log-ratio only.
    "future KL dropped": "No token pays for the KL of the steps that it leads to.",
    "own token dropped": "The derivative of the KL at the token's own step is missing.",
    "own token twice": "The derivative of the KL at the token's own step counts twice.",
    # Also an exact KL with its arguments swapped that stands in the loss alone.
    "other direction": "The pull is that of KL(ref || pi), not of KL(pi || ref).",
    "KL arguments swapped": "Tokens pay for KL(ref || pi), that of later steps included.",
    "k3 in reward": "The pull is that of KL(pi || ref) less that of KL(ref || pi).",
    "k2 in reward": "Tokens are charged for being rarer than in the reference, too.",
    "k2 times ratio": "A k2 loss has the right direction; the ratio adds the score of k2 to it.",
    "ratio upside down": "A k3 loss with pi / ref for ref / pi: the pull of a chi-square.",
    "beta scaled": "The penalty's direction is right, its coefficient is not beta.",
    "log-ratio clamped": "Right near the reference and wrong far from it.",
    "only scaled": "The direction is right: another learning rate makes up for it.",
    "unknown": "Wrong, and in no way that is listed here.",
}

# Who earns the reward: all tokens; those of full responses; the last; the last of full ones.
REWARDS = {
    (1, 0, 0, 0): [],
    (0, 1, 0, 0): ["reward behind the end"],
    (0, 0, 1, 0): ["reward on the last token only"],
    (0, 0, 0, 1): ["reward on the last token only", "reward behind the end"],
}

# Coefficients of F and D; of KL(ref || pi) at the own step and later; of chi-square; of the score
# of k2 at the own step and later.
PENALTIES = {
    (1, 1, 0, 0, 0, 0, 0): [],
    (0, 1, 0, 0, 0, 0, 0): ["future KL dropped"],
    (1, 0, 0, 0, 0, 0, 0): ["own token dropped"],
    (1, 2, 0, 0, 0, 0, 0): ["own token twice"],
    (1, 0, 1, 0, 0, 0, 0): ["other direction"],
    (0, 0, 1, 0, 0, 0, 0): ["other direction", "future KL dropped"],
    (0, 0, 1, 1, 0, 0, 0): ["KL arguments swapped"],
    (0, 0, 0, 1, 0, 0, 0): ["KL arguments swapped", "own token dropped"],
    (1, 1, -1, 0, 0, 0, 0): ["k3 in reward"],
    (0, 0, 0, 0, 1, 0, 0): ["ratio upside down", "future KL dropped"],
    (0, 0, 0, 0, 0, 1, 1): ["k2 in reward"],
    (0, 1, 0, 0, 0, 1, 0): ["k2 times ratio", "future KL dropped"],
}
