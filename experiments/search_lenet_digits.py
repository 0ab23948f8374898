"""Do settings found by a search beat the recipe's for LeNet-5 on the embedded digits?

Claim      : learning rate, momentum and weight decay found by 24 trials beat the recipe's own where it trains for 9 epochs.
Source     : our recipe, configs/lenet_digits.py; the search, Bergstra et al. (NeurIPS 2011) and Li et al. (MLSys 2020).
Expectation: test accuracy of the found above the recipe's, at 95% confidence over 5 paired seeds that the search did not
             see.
Margin     : 0.5% of accuracy, about two of the 450 test pictures.
Refuted if : the gain is below the margin beyond doubt.
Cost       : 24 trials and 10 runs of at most 9 epochs, about 4 minutes on two cores.
"""

from experiments.verdicts import compare, conclude, paired

CONFIG = "configs/lenet_digits.py"
SHORT = {"num_epochs": 9.0, "eval.every_epochs": 1.0}
SEARCH = dict(trials=24, seed=0, metric="loss", sampler="tpe", halving=3, first_epochs=1)


def search(trial):
    """Overrides of a trial."""
    return {
        **SHORT,
        "optim.lr": trial.suggest_float("lr", 1e-3, 0.5, log=True),
        "optim.momentum": trial.suggest_float("momentum", 0.5, 0.98),
        "optim.weight_decay": trial.suggest_float("weight_decay", 1e-6, 1e-2, log=True),
    }


def runs(found):
    """The recipe and the found, on fresh seeds."""
    for seed in range(1, 6):
        yield dict(group="recipe", seed=seed, overrides=SHORT)
        yield dict(group="found", seed=seed, overrides=found)


def judge(results):
    """Paired by seed."""
    d = paired(results, "found", "recipe", lambda record: record["metrics"]["accuracy"])
    return conclude(compare(d, name="found - recipe", metric="test accuracy", refuted_below=0.005))
