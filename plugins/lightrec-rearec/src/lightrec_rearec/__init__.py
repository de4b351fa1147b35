"""ReaRec for lightrec: latent multi-step reasoning around any sequence encoder.

Jiakai Tang et al., "Think Before Recommend: Unleashing the Latent Reasoning Power for Sequential Recommendation", 2025,
https://arxiv.org/abs/2503.22675. Start with `model.py`; `reasoning.py` is the wrapper, `objectives.py` ERL and PRL.
"""
