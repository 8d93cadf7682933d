"""The same run in TRL, for those who outgrow one machine: any world, any model, its loop.

    pip install -e ".[scale]"
    python -m ppo_toy.in_trl --help

A policy of ours becomes a model of transformers with the same probabilities, TRL's RLOO trainer
trains it on one process or on many, and what comes out becomes a policy again, which `exact`
judges. A model and a tokenizer of one's own, with a reward of one's own, take the same way.
Nothing is downloaded unless a name of a model asks for it.

    libraries  what has to be installed, and how to keep it quiet
    bridge     our policies, worlds and words as transformers has them, and back
    tasks      what a run is about: model, tokenizer, prompts, reward
    settings   how it is run, and what TRL calls that
    runs       the folder of a run: its settings, its log, its checkpoints
    diary      what is written down meanwhile
    trainer    the run
    check      the run's own trainer, with its own settings, before the referee
    loops      our loop and TRL's beside each other, five seeds of each
"""
