"""Tables, progress displays and reports of the commands that need the server. They import no command."""
