"""A recipe small enough to train within a test."""

RECIPE = {
    "name": "small",
    "data": {
        "train": "synthetic_faces",
        "size": [32, 32],
        "options": {"identities": 16, "images": 6},
        "split": {"train_identities": 12, "validation_identities": 3},
        "augment": {"preset": "face"},
        "sampler": {"name": "pk", "identities": 4, "images": 2},
        "workers": 0,
    },
    "model": {"backbone": "test_resnet", "neck": "bnneck"},
    "objective": [
        {"loss": "softmax", "label_smoothing": 0.1},
        {"loss": "triplet", "on": "features", "margin": None, "start": 0.25},
        {"loss": "center", "on": "features", "weight": 0.001, "update": "alpha"},
    ],
    "optim": {"lr": 0.001},
    "train": {"images": 96, "ema": 0.9, "precision": "fp32", "accumulate": 2},
    "evaluation": {"protocols": ["identification"], "every": 2},
    "checkpoint": {"every_steps": 2, "keep": 2},
    "log": {"every": 2},
}
