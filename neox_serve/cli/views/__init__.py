"""Tables and progress displays for people: functions from the client's results to rich renderables. They import no command."""
