import time

import marked
from huey import RedisHuey

huey = RedisHuey("benchmark", url=marked.URL)


@huey.task()
def noop(n):
    return marked.run(n)


@huey.task()
def short(n):
    time.sleep(0.001)
    return marked.run(n)


def submit(task, numbers):
    chosen = {"noop": noop, "short": short}[task]
    for n in numbers:
        chosen(n)


if __name__ == "__main__":
    # Tasks are known by their module's name, which is another one when it is run as a program.
    from huey_app import submit as submit_there

    marked.main(submit_there)
