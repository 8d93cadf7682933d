"""Measures speed as ratios within one run.

    python -m ppo_toy.benchmarks             one batch against Python loops
    python -m ppo_toy.benchmarks cartpole    our PPO against stable-baselines3's on CartPole-v1
    python -m ppo_toy.benchmarks generate    sampling from a tiny GPT against transformers' generate
                                             (on a GPU: --device cuda)
    python -m ppo_toy.benchmarks ppo         an iteration against TRL's PPO
    python -m ppo_toy.benchmarks grpo        an iteration against TRL's GRPO
    python -m ppo_toy.benchmarks floor       an iteration against what it cannot do without

Each pair is timed in turn (A B A B ...) on one thread, and the median ratio of the pairs is
printed; absolute times, which differ from machine to machine, stand beside it. A peer's package is
pinned at the head of its module and named here if it is missing; PPO and GRPO need two versions of
TRL, so two virtual environments. Nothing is downloaded but packages.
"""
