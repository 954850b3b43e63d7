import time

import marked
from celery import Celery

app = Celery("celery_app", broker=marked.URL, backend=marked.URL)
app.conf.update(worker_prefetch_multiplier=64, worker_hijack_root_logger=False)


@app.task(name="noop")
def noop(n):
    return marked.run(n)


@app.task(name="short")
def short(n):
    time.sleep(0.001)
    return marked.run(n)


def submit(task, numbers):
    chosen = {"noop": noop, "short": short}[task]
    with app.producer_or_acquire() as producer:
        for n in numbers:
            chosen.apply_async((n,), producer=producer)


if __name__ == "__main__":
    marked.main(submit)
