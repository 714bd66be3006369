"""The linear head that is solved on features instead of trained, and the output layer that takes it."""

from dataclasses import dataclass

import numpy as np
from torch import nn

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True)
class LinearHead:
    """
    A linear layer, solved.

    Args:
        weight (`np.ndarray` of shape `(outputs, features)`):
            The weights.
        bias (`np.ndarray` of shape `(outputs,)`):
            The bias.
    """

    weight: np.ndarray
    bias: np.ndarray

    def logits(self, features: np.ndarray) -> np.ndarray:
        """
        Args:
            features (`np.ndarray` of shape `(rows, features)`):
                The features.

        Returns:
            `np.ndarray` of shape `(rows, outputs)`: `features @ weight.T + bias`.
        """
        return features @ self.weight.T + self.bias


def solve_linear_head(
    features: np.ndarray, labels: np.ndarray, *, problem_type: str, outputs: int, regularization: float | None = None
) -> LinearHead:
    """
    Solves the output layer instead of training it: logistic regression for classes, ridge for numbers.

    The features are standardised for the solver, `z = (x - m) / s`, and the scaling is folded back:
    `weight = w / s`, `bias = b - weight @ m`. Two classes give the symmetric pair `(-w / 2, w / 2)`, whose softmax is
    the solver's sigmoid.

    Args:
        features (`np.ndarray` of shape `(rows, features)`):
            Inputs of the layer.
        labels (`np.ndarray` of shape `(rows,)` or `(rows, outputs)`):
            Class numbers, rows of 0/1, or values.
        problem_type (`str`):
            As in the model's config.
        outputs (`int`):
            Outputs of the layer.
        regularization (`float`, *optional*):
            Inverse strength `C` of the L2 penalty; chosen by 5-fold cross-validation where not given.

    Returns:
        `LinearHead`: The layer.

    Raises:
        ValueError: If there are fewer than two classes; a constant label among many is no error.
    """
    # Here, as scikit-learn takes 43 MiB that only this needs.
    from sklearn.linear_model import Ridge, RidgeCV
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(features)
    scaled = scaler.transform(features)
    if problem_type == "regression":
        strengths = [1 / c for c in STRENGTHS]
        solver = RidgeCV(alphas=strengths) if regularization is None else Ridge(alpha=1 / regularization)
        fitted = solver.fit(scaled, labels.reshape(len(labels), -1))
        raw_weight, raw_bias = np.atleast_2d(fitted.coef_), np.atleast_1d(fitted.intercept_)
    elif problem_type == "multi_label_classification":
        rows = [_one_label(scaled, labels[:, j], regularization) for j in range(outputs)]
        raw_weight, raw_bias = np.stack([weight for weight, _ in rows]), np.array([bias for _, bias in rows])
    else:
        raw_weight, raw_bias = _logistic(scaled, labels, outputs, regularization)
    weight = raw_weight / scaler.scale_
    return LinearHead(weight, raw_bias - weight @ scaler.mean_)


def _one_label(scaled: np.ndarray, labels: np.ndarray, regularization: float | None) -> tuple[np.ndarray, float]:
    """One of many labels; where every row or none has it, the log-odds of its share with half a row on either side."""
    on = int((labels > 0.5).sum())
    if on in (0, len(labels)):
        return np.zeros(scaled.shape[1]), float(np.log((on + 0.5) / (len(labels) - on + 0.5)))
    weight, bias = _logistic(scaled, labels, 2, regularization)
    return weight[1] - weight[0], bias[1] - bias[0]


def _logistic(
    scaled: np.ndarray, labels: np.ndarray, outputs: int, regularization: float | None
) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV

    classes, counts = np.unique(labels.astype(int), return_counts=True)
    if len(classes) < 2:
        raise ValueError(
            f"A head needs at least two classes to be solved, but the labels hold only {classes.tolist()}."
        )
    folds = min(5, int(counts.min()))
    if regularization is None and folds > 1:
        search = GridSearchCV(LogisticRegression(max_iter=1000), {"C": list(STRENGTHS)}, cv=folds)
        regularization = search.fit(scaled, labels.astype(int)).best_params_["C"]
    solver = LogisticRegression(C=regularization or 0.01, max_iter=1000).fit(scaled, labels.astype(int))
    weight, bias = np.zeros((outputs, scaled.shape[1])), np.full(outputs, -30.0)
    if len(classes) == 2:
        weight[classes], bias[classes] = np.stack([-solver.coef_[0], solver.coef_[0]]) / 2, solver.intercept_[0] / 2
        bias[classes[0]] *= -1
    else:
        weight[classes], bias[classes] = solver.coef_, solver.intercept_
    # A class that no row has is left unlikely rather than undefined.
    return weight, bias


def find_output_layer(model: nn.Module, head: tuple[str, ...]) -> nn.Linear:
    """
    The last linear layer of the head with one output for each label.

    Args:
        model (`nn.Module`):
            The model.
        head (`tuple[str, ...]`):
            Names of the head's parameters.

    Returns:
        `nn.Linear`: The layer.

    Raises:
        ValueError: If the head has none.
    """
    labels = getattr(getattr(model, "config", None), "num_labels", None)
    found = [
        module
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and f"{path}.weight" in head and module.out_features == labels
    ]
    if not found:
        raise ValueError(
            f"`lp-ft` solves a linear output layer with {labels} outputs, but the head of {type(model).__name__} has "
            "none. Use `gradual-unfreezing` for this model."
        )
    return found[-1]
