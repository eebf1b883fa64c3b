"""Evaluation: generation, likelihoods, scores with intervals, and base beside edited model (evaluator.py)."""
