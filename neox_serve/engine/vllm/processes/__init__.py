"""Starting and stopping the processes of vLLM's engine core. Start reading in forks.py."""
