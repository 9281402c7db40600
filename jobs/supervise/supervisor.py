"""One rank's supervisor: it runs the worker, and survives when the worker dies, hangs or is killed.

It reports to rank 0's supervisor, which decides for all (coordinate.py), so that no rank is left behind: a
dead rank ends all ranks on all nodes within seconds, the first error is the one recorded, and whatever
happens, no process of the job is left. Imports no torch: it exists before and after the worker.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.run import events, exit_codes, files
from jobs.run.directory import Run, newest_start_seen
from jobs.run.errors import MALFORMED, limited
from jobs.run.task import Task
from jobs.supervise import heartbeat, processes, reserve, tracking, worker_end
from jobs.supervise.coordinate import DUMP_SECONDS, SILENT_SECONDS, Coordinator, Rank
from jobs.supervise.copies import Copies
from jobs.supervise.rendezvous import Meeting

SIGN_OF_LIFE_SECONDS = 5.0
SHORTEST_STOP = 1.0
"""Seconds: shorter suspensions of the worker are not reported."""
UNSEEN_STOP = 5.0
"""The same, if the only sign is that this process's own sleep took far too long: a cgroup freezer stops
processes without a visible signal. A busy machine may delay it by less."""


def supervise(
    run: Run,
    task: Task,
    meeting: Meeting,
    command: Sequence[str],
    folder: Path | None,
    story: events.Writer,
    *,
    hang_seconds: float,
    environ: Mapping[str, str],
    wakeup: int,
    signals: list[signal.Signals],
    last_checkpoint: tuple[int, int],
) -> int:
    """Runs this rank's worker, in `folder`, to its end and returns the exit code that all ranks agreed on.

    `signals`: where the caller's handlers append the signals received, when `wakeup`, a descriptor, becomes
    readable. `story` gets the events, on rank 0 only (on rank 1 if rank 0's supervisor is lost).
    `last_checkpoint`: the (step, epoch) from which this start resumes.
    """
    supervisor = _Supervisor(run, task, meeting, story, wakeup, signals)
    if task.rank == 0:
        now = time.monotonic()
        supervisor.coordinator = Coordinator(
            ranks=[Rank(host, now, now) for host in meeting.hosts],
            order=supervisor.order_all,
            write=story.append,
            hang_seconds=hang_seconds,
            last_checkpoint=last_checkpoint,
            stacks=f"{files.JOB()}/{files.STACKS(START=meeting.start, RANK='*')}",
        )
    return supervisor.run_worker(command, folder, environ)


class _Supervisor:
    """The state of one rank's supervisor. Only rank 0 has a `coordinator`."""

    def __init__(
        self,
        run: Run,
        task: Task,
        meeting: Meeting,
        story: events.Writer,
        wakeup: int,
        signals: list[signal.Signals],
    ) -> None:
        self.run, self.task, self.meeting, self.story = run, task, meeting, story
        self.peers = dict(meeting.peers)
        self.wakeup, self.signals = wakeup, signals
        self.worker: int | None = None
        self.ended = False
        self.reserve, self.beside = reserve.Reserve(run), tracking.Beside(run)
        self.phase: str | None = None
        self.step: int | None = None
        self.stacks_until: float | None = None
        self.code: int | None = None
        self.pending: list[signal.Signals] = []
        now = time.monotonic()
        self.last_sign = self.heard = self.last_round = now
        self.heartbeats = b""
        self.beaten: deque[float] = deque(maxlen=64)
        """When the worker wrote its last signs of life, on the clock that the whole machine shares."""
        self.stopped: float | None = None
        """Since when the worker has been suspended; None if it is not."""
        self.fresh = False
        self.reported: tuple[str | None, float] = (None, 0.0)
        self.coordinator: Coordinator | None = None

    def run_worker(self, command: Sequence[str], folder: Path | None, environ: Mapping[str, str]) -> int:
        self.copies = Copies(self.run, self.task, environ)
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        self.selector = selectors.DefaultSelector()
        self.selector.register(read_end, selectors.EVENT_READ, "heartbeat")
        self.selector.register(self.wakeup, selectors.EVENT_READ, "wakeup")
        for number, connection in self.peers.items():
            self.selector.register(connection, selectors.EVENT_READ, number)
        env = self.worker_environment(environ) | {"BATON_HEARTBEAT_FD": str(write_end)}
        passed = [write_end]
        if self.meeting.store:
            passed.append(self.meeting.store.fileno())
            env["BATON_STORE_FD"] = str(self.meeting.store.fileno())
        self.heartbeat_end = read_end
        try:
            log = worker_end.log_of(self.run, self.task)
            self.log_begin = worker_end.size_of(self.run.path / log) if log else 0
            self.worker = processes.start(command, env, pass_fds=passed, cwd=folder)
            os.close(write_end)
            if self.meeting.store:  # it belongs to the worker now
                self.meeting.store.close()
            while self.code is None:
                self.round()
            return self.code
        finally:
            self.beside.end(exit_codes.FAILED if self.code is None else self.code)
            processes.end_all()
            self.copies.leave(self.code == exit_codes.FINISHED)
            for connection in self.peers.values():
                connection.close()
            self.selector.close()
            os.close(read_end)

    def worker_environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        task, meeting = self.task, self.meeting
        env = (
            dict(environ)
            | {
                "RANK": str(task.rank),
                "WORLD_SIZE": str(task.world_size),
                "LOCAL_RANK": str(task.local_rank),
                "LOCAL_WORLD_SIZE": str(task.local_world_size),
                "MASTER_ADDR": meeting.master_address,
                "MASTER_PORT": str(meeting.master_port),
                "BATON_STORE_KEY": meeting.store_key,
                "BATON_RUN": str(self.run.path),
                "BATON_START": str(meeting.start),
                "BATON_JOB": task.job,
            }
            | self.copies.environment
        )
        if meeting.interface:
            # Otherwise gloo uses the host name, which many machines resolve to a loopback address, and some
            # single machines to an address that others can reach.
            env.setdefault("GLOO_SOCKET_IFNAME", meeting.interface)
            if len(set(meeting.hosts)) == 1:
                env.setdefault("NCCL_SOCKET_IFNAME", meeting.interface)
        return env

    # One round of the loop

    def round(self) -> None:
        timeout, slept = (0.5 if self.fresh else 1.0), time.monotonic()
        ready = self.selector.select(timeout)
        now = time.monotonic()
        if now - slept > timeout + SHORTEST_STOP:  # suspended meanwhile: check again what is ready
            ready = self.selector.select(0)
        for key, _ in ready:
            if key.data == "wakeup":
                os.read(self.wakeup, 4096)
            elif key.data == "heartbeat":
                self.read_heartbeats(now)
            else:
                self.read_peer(key.data, now)
        self.notice_stops(slept, timeout, now)
        self.pass_on_progress(now)
        self.take_signals(now)
        self.watch_worker(now)
        self.check_stacks(now)
        for event in self.copies.events(self.ended):
            self.report({"copy": event}, now)
        if self.coordinator:
            self.coordinator.tick(now)
            # Not before this rank can end, too: srun kills the rest once a task has exited with an error.
            if self.coordinator.code is not None and not self.reserve.is_awaited(now):
                self.order_all({"do": "end", "code": self.coordinator.code})
        self.keep_in_touch(now)
        self.story.flush()

    def read_heartbeats(self, now: float) -> None:
        data = os.read(self.heartbeat_end, 65536)
        if not data:  # the worker and all its children have closed it
            self.selector.unregister(self.heartbeat_end)
            return
        *lines, self.heartbeats = (self.heartbeats + data).split(b"\n")
        for line in lines:
            beat = heartbeat.read(line, now)
            if isinstance(beat, heartbeat.Reads):
                self.copies.begin(beat.path)
            if not isinstance(beat, heartbeat.Beat):
                continue  # written by a child of the worker; not a sign of progress
            self.phase, self.step = beat.phase, self.step if beat.step is None else beat.step
            self.beaten.append(beat.at)
            # The worker's handlers are installed by its first sign of life: forward earlier signals now.
            for number in self.pending:
                self.forward(number)
            self.pending.clear()
        self.fresh = True
        self.pass_on_progress(now)

    def notice_stops(self, slept: float, timeout: float, now: float) -> None:
        """Reports for how long the worker was suspended, by `scontrol suspend` or SIGSTOP, once it continues.
        Usually this process is suspended together with it, while it sleeps in `select`: from `slept` on, and
        nominally for `timeout` seconds.
        """
        overslept = now - slept - timeout
        since = slept + timeout / 2 if overslept > SHORTEST_STOP else now
        change = self.worker_change()
        if change == os.CLD_STOPPED and self.stopped is None:
            self.stopped = since
        elif change == os.CLD_CONTINUED:
            since, self.stopped = (since if self.stopped is None else self.stopped), None
        elif overslept < UNSEEN_STOP or self.stopped is not None or self.ended:
            return
        elif any(since + SHORTEST_STOP < beat < now - SHORTEST_STOP for beat in self.beaten):
            return  # it kept working: only this process was stopped
        if self.stopped is None and now - since > SHORTEST_STOP:
            self.report({"suspended": round(now - since, 3)}, now)

    def worker_change(self) -> int | None:
        """CLD_STOPPED or CLD_CONTINUED if that has happened to the worker since the last call, else None."""
        if self.worker is None or self.ended:
            return None
        try:
            change = os.waitid(os.P_PID, self.worker, os.WSTOPPED | os.WCONTINUED | os.WNOHANG)
        except ChildProcessError:
            return None
        return change.si_code if change is not None else None

    def pass_on_progress(self, now: float) -> None:
        """Reports progress: at most once a second, but a new phase at once."""
        phase, at = self.reported
        if self.fresh and self.phase is not None and (self.phase != phase or now - at > 1.0):
            self.reported, self.fresh = (self.phase, now), False
            self.report({"phase": self.phase, "step": self.step}, now)
            if self.coordinator and self.phase == "train":  # this start has written the config by then
                self.beside.begin()

    def read_peer(self, number: int, now: float) -> None:
        messages = self.peers[number].receive()
        if messages is None:
            self.selector.unregister(self.peers[number])
            self.peers.pop(number).close()
            if self.coordinator:
                self.coordinator.lost(number, "its supervisor was killed, or its node is lost", now)
            elif self.code is None:
                self.abandoned("rank 0's supervisor was killed, or its node is lost")
            return
        self.heard = now
        for message in messages:
            if self.coordinator:
                self.coordinator.handle(number, message, now)
            elif "do" in message:
                self.obey(message, now)

    def take_signals(self, now: float) -> None:
        while self.signals:
            number = self.signals.pop(0)
            self.report({"signal": number.name}, now)
            if self.coordinator:
                self.reserve.submit()
            self.beside.ask_to_end()
            if self.phase is None:
                self.pending.append(number)
            else:
                self.forward(number)

    def reap(self) -> dict[int, int]:
        return self.note(processes.reap())

    def note(self, ended: dict[int, int]) -> dict[int, int]:
        for others in (self.reserve, self.beside):
            others.pids -= ended.keys()
        return ended

    def end_processes(self) -> dict[int, int]:
        """Ends the worker, its data loader workers, and any other descendants."""
        return self.note(processes.end_all(spare=self.reserve.pids | self.beside.pids))

    def forward(self, number: signal.Signals) -> None:
        """Forwards a signal. Slurm signals the worker itself, too, but its handler only sets a flag."""
        if self.worker is not None and not self.ended:
            processes.send(self.worker, number)

    def watch_worker(self, now: float) -> None:
        status = self.reap().get(self.worker or -1)
        if status is not None:
            self.worker_ended(status, now)

    def worker_ended(self, status: int, now: float) -> None:
        if self.heartbeat_end in self.selector.get_map():
            # Its last heartbeats may still be in the pipe.
            os.set_blocking(self.heartbeat_end, False)
            with contextlib.suppress(BlockingIOError):
                self.read_heartbeats(now)
        self.ended = True
        self.end_processes()
        self.report({"exit": self.describe_end(status)}, now)

    def describe_end(self, status: int) -> dict[str, Any]:
        code, by_signal, message = worker_end.describe(status)
        if code == exit_codes.FINISHED and self.phase != "end":
            code, message = exit_codes.FAILED, "ended with exit code 0 before the training was finished"
        newest = newest_start_seen(self.run.job) if code == exit_codes.SUPERSEDED else 0
        if code == exit_codes.SUPERSEDED and newest <= self.meeting.start:
            code, message = (
                exit_codes.FAILED,
                f"ended with exit code {code}, but no later start is to be seen",
            )
        end: dict[str, Any] = {"code": code, "signal": by_signal, "step": self.step}
        if code == exit_codes.SUPERSEDED:
            return end | {"by": newest}
        if code in (exit_codes.FINISHED, exit_codes.RESUME):
            return end
        recorded = self.run.job / files.ERROR(START=self.meeting.start, RANK=self.task.rank)
        log = worker_end.log_of(self.run, self.task)
        try:
            error = message if by_signal else limited(str(json.loads(recorded.read_bytes())["error"]))
        except FileNotFoundError:
            error = message
            if code == exit_codes.USER_ERROR and log:
                error = worker_end.users_mistake(self.run.path / log, self.log_begin) or message
        except (OSError, *MALFORMED) as problem:
            error = f"{message} ({recorded.name} cannot be read: {problem})"
        words = worker_end.explained(error, self.run.path / log, self.log_begin) if log else error
        return end | {"error": words, "log": log}

    @property
    def stacks(self) -> Path:
        return self.run.job / files.STACKS(START=self.meeting.start, RANK=self.task.rank)

    def check_stacks(self, now: float) -> None:
        """Reports when the worker has written its stacks, or cannot."""
        if self.stacks_until is None:
            return
        path = self.stacks
        written = worker_end.size_of(path) > 0 and time.time() - path.stat().st_mtime > 0.5
        if written or self.ended or now > self.stacks_until:
            self.stacks_until = None
            self.report({"dumped": True}, now)

    def keep_in_touch(self, now: float) -> None:
        if now - self.last_round > 10.0:  # this process has been suspended
            self.heard = now
        self.last_round = now
        if now - self.last_sign > SIGN_OF_LIFE_SECONDS:
            self.last_sign = now
            for connection in self.peers.values():
                connection.send({"alive": True})
        if not self.coordinator and self.code is None and now - self.heard > SILENT_SECONDS:
            self.abandoned(f"rank 0's supervisor was not heard of for {SILENT_SECONDS:.0f} s")

    # Reports up, orders down

    def report(self, message: dict[str, Any], now: float) -> None:
        if self.coordinator:
            self.coordinator.handle(0, message, now)
        elif 0 in self.peers:
            self.peers[0].send(message)

    def order_all(self, order: dict[str, Any]) -> None:
        for connection in self.peers.values():
            connection.send(order)
        self.obey(order, time.monotonic())

    def obey(self, order: dict[str, Any], now: float) -> None:
        if order["do"] == "dump":
            self.stacks_until = now + DUMP_SECONDS
            worker_end.dump_stacks(self.stacks, self.worker)
        elif order["do"] == "kill" and not self.ended and self.worker is not None:
            ended = self.end_processes()
            status = ended.get(self.worker)
            self.worker_ended(status if status is not None else signal.SIGKILL, now)
        elif order["do"] == "end":
            self.code = int(order["code"])

    def abandoned(self, why: str) -> None:
        """Ends this rank, because rank 0's supervisor is lost."""
        self.end_processes()
        if self.task.rank == 1:
            self.story.append("failed", reason=why, rank=0, host=self.meeting.hosts[0], error=why)
        self.code = exit_codes.FAILED
