"""`against`: whether the working code is slower than another commit, told from noise.

`interval.py`, `measures.py` and `judgement.py` calculate and decide; `sides.py`, `held.py` and `run.py` do the work.
"""
