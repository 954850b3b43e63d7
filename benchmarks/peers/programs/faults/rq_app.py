from note import JOBS, TUNED, URL, work
from redis import Redis
from rq import Queue, Retry


def submit() -> None:
    queue = Queue(connection=Redis.from_url(URL))
    options = {"retry": Retry(max=3)} if TUNED else {}
    for number in range(JOBS):
        queue.enqueue("rq_app.job", number, **options)


def job(number: int) -> int:
    return work(number)
