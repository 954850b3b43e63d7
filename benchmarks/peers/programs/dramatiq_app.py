import time

import dramatiq
import marked
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

broker = RedisBroker(url=marked.URL)
broker.add_middleware(Results(backend=RedisBackend(url=marked.URL, use_namespace_prefix_keys=True)))
dramatiq.set_broker(broker)


@dramatiq.actor(store_results=True)
def noop(n):
    return marked.run(n)


@dramatiq.actor(store_results=True)
def short(n):
    time.sleep(0.001)
    return marked.run(n)


def submit(task, numbers):
    actor = {"noop": noop, "short": short}[task]
    for n in numbers:
        broker.enqueue(actor.message(n))


if __name__ == "__main__":
    marked.main(submit)
