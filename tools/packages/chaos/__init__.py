"""The chaos run: a scheduler of many processes under load, killed, paused or replaced one after the other."""
