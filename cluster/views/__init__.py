"""What the commands of `cluster` print: results as tables, JSON and pages. Views compute nothing and call no gateway.

They may import result types of the packages that they show. Start with the view that has the name of the command.
"""
