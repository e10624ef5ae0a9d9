"""Starting the processes of a stage, and the device of each."""
