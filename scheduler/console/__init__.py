"""What every command needs of its process and terminal. The commands of `cli` and the tools share it."""
