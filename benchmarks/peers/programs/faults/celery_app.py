import os

from celery import Celery
from note import JOBS, TUNED, URL, work

app = Celery("celery_app", broker=URL, backend=URL)
if os.environ.get("FAULTS_KIND") == "late":
    app.conf.update(task_acks_late=True, task_reject_on_worker_lost=True)
if TUNED:
    app.conf.update(broker_transport_options={"visibility_timeout": 30})


@app.task
def job(number: int) -> int:
    return work(number)


def submit() -> None:
    for number in range(JOBS):
        job.delay(number)
