"""What only a GPU can prove, as one command that writes a report: `make gpu-check`.

checks.py has the table of checks and what each does; runner.py runs them, each in a process of its
own with a time limit, and writes the report after each. The .cu files are small programs for the
checks of hardware.py.
"""
