"""Of many sessions: scheduling, admission, handing out, a viewer's clock."""

from __future__ import annotations

TESTS = "tests/streaming"
ENGINES, BESIDE = f"{TESTS}/test_engine.py", f"{TESTS}/test_engine_frames.py"
LET_IN, VIEWERS = f"{TESTS}/test_engine_admission.py", f"{TESTS}/test_session_viewer.py"
HELD = f"{VIEWERS}::test_late_computation_holds_the_last_frame_and_skips_nothing"

FOLDER = "rest_fast/streaming"
ENGINE, COSTS, PUMP = f"{FOLDER}/engine.py", f"{FOLDER}/costs.py", f"{FOLDER}/pump.py"
SEAT, MAIL, SESSION = f"{FOLDER}/seat.py", f"{FOLDER}/mailbox.py", f"{FOLDER}/session.py"
FAMILY, VIEWING = f"{FOLDER}/family.py", f"{FOLDER}/viewing.py"
STREAM, WORK, LIVELY = f"{FOLDER}/stream.py", f"{FOLDER}/work.py", f"{FOLDER}/live.py"

MANY = [
    ("sessions are served in the order of their opening", ENGINE, "waiting.sort(key=lambda seat: seat.deadline)",
     "pass", f"{ENGINES}::test_the_viewer_who_runs_out_first_is_served_first"),
    ("a deadline forgets what exists", SEAT, "self.since or 0.0) + exists", "self.since or 0.0)",
     f"{ENGINES}::test_the_deadline_of_what_does_not_exist_yet"),
    ("a chunk is done before another's begins", ENGINE, "return Work(stream, whole=self.places == 1,",
     "return Work(stream, whole=True,", f"{ENGINES}::test_an_urgent_session_waits_for_a_piece_and_not_for_a_chunk"),
    ("generation stops at what was taken", VIEWING, "(self.chunk - 1 if early else 0)", "0",
     f"{ENGINES}::test_a_consumer_that_stops_taking_holds_up_nobody"),
    ("generation runs on without a consumer", VIEWING, "(self.chunk - 1 if early else 0)",
     "(self.chunk if early else 0)", f"{ENGINES}::test_nothing_is_generated_before_a_block_was_taken"),
    ("lanes are not shared", ENGINE, "return evaluating[: self.together]", "return evaluating[:1]",
     f"{BESIDE}::test_captured_lanes_at_other_steps_do_not_matter"),
    ("a session too many is let in", ENGINE, "count < capacity or not self.admission", "True",
     f"{LET_IN}::test_one_session_too_many_is_refused_with_the_reason"),
    ("all of the time may be used", COSTS, "LOAD = 0.85", "LOAD = 1.0",
     f"{LET_IN}::test_capacity_is_a_share_of_the_time_of_a_chunk"),
    ("a chunk costs its last piece", COSTS, "self._spent[session] += seconds / len(sessions)",
     "self._spent[session] = seconds / len(sessions)", f"{ENGINES}::test_costs_are_those_of_whole_chunks"),
    ("a place is not given back", ENGINE, "self.free.append(seat.place)", "pass",
     f"{LET_IN}::test_one_session_too_many_is_refused_with_the_reason"),
    ("a closed session's memory stays", SEAT, "del self.work, self.stream", "pass",
     f"{ENGINES}::test_a_hundred_sessions_leave_nothing_behind"),
    ("a closed engine's memory stays", FAMILY, "self.__dict__.pop(\"sampler\", None)", "pass",
     f"{ENGINES}::test_a_closed_engine_has_closed_its_sessions_and_gives_its_memory_back"),
    ("a fault of the engine itself is told to nobody", ENGINE, "for seat in self.seats:\n                    seat.fail",
     "for seat in ():\n                    seat.fail",
     f"{TESTS}/test_engine_faults.py::test_a_fault_of_the_engine_itself_reaches_all_consumers[True]"),
    ("a failure is forgotten", SEAT, "self.mailbox.error, self.mailbox.quiet = error, True",
     "self.mailbox.quiet = True",
     f"{TESTS}/test_engine_faults.py::test_a_failed_generation_reaches_its_consumer_and_no_other"),
    ("a full queue takes more", SESSION, "if self.backlog is not None and", "if False and",
     f"{LET_IN}::test_too_much_sound_is_refused_and_nothing_of_it_taken"),
    ("a chunk that did not wait is degraded", ENGINE, "and seat.waited(now) > each / 2", "",
     f"{ENGINES}::test_fewer_steps_are_flagged_and_leave_the_rest_of_the_stream_alone"),
    ("an abandoned job is taken over", WORK, "if self.job is not None and self._restarts != self.stream.restarts:",
     "if False:", f"{BESIDE}::test_an_interrupt_abandons_the_work_in_flight"),
    ("silence comes long before its time", LIVELY, "IDLE_BEFORE if made is not None and made.idle else ahead", "ahead",
     f"{VIEWERS}::test_silence_comes_block_by_block_at_its_time"),
    ("speech comes long before its time", SESSION, "self.mailbox, changed, self.lead * self.mailbox.duration,",
     "self.mailbox, changed, 99,",
     f"{VIEWERS}::test_speech_comes_at_once_but_not_further_ahead_than_can_be_taken_back"),
    ("a held frame takes time of the stream", MAIL, "            return self.delivered * self.duration, self.epoch",
     "            self.messages.append(Delivered())\n            return self.delivered * self.duration, self.epoch",
     HELD),
    ("a held frame moves the deadline", MAIL,
     "self._raise_error()\n            self.plays_until = max",
     "self._raise_error()\n            self.plays_until = self.runs_out = max",
     f"{ENGINES}::test_viewers_of_held_frames_are_served_in_turn"),
    ("nothing is held", LIVELY, "held = hold()", "held = None", HELD),
]  # fmt: skip
