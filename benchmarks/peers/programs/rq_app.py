import time

import marked
from redis import Redis
from rq import Queue


def noop(n):
    return marked.run(n)


def short(n):
    time.sleep(0.001)
    return marked.run(n)


def submit(task, numbers):
    queue = Queue(connection=Redis.from_url(marked.URL))
    for start in range(0, len(numbers), 1000):
        queue.enqueue_many([Queue.prepare_data(f"rq_app.{task}", (n,)) for n in numbers[start : start + 1000]])


if __name__ == "__main__":
    marked.main(submit)
