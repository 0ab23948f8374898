"""One offline HTML page of a run, a population or an experiment. `write.py` decides which, and writes it."""
