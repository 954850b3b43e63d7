import dramatiq
from dramatiq.brokers.redis import RedisBroker
from note import JOBS, TUNED, URL, work

# The heartbeat is how long a silent worker keeps its messages; a sweep for them comes by chance, per command.
options = {"heartbeat_timeout": 15_000, "maintenance_chance": 100_000} if TUNED else {}
dramatiq.set_broker(RedisBroker(url=URL, **options))


@dramatiq.actor
def job(number: int) -> None:
    work(number)


def submit() -> None:
    for number in range(JOBS):
        job.send(number)
