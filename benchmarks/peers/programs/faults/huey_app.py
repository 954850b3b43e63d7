from huey import RedisHuey
from note import JOBS, URL, work

huey = RedisHuey("faults", url=URL)


@huey.task()
def job(number: int) -> int:
    return work(number)


def submit() -> None:
    for number in range(JOBS):
        job(number)
