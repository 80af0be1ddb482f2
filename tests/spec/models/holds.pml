/*
 * A hold of an organization, with `cancel_running`, that races with submissions and a resume.
 *
 * Covers: the lock of the organization, which two submissions and a resume share, and which the hold and the
 * release take exclusively; the cancellation of the tasks that run, after the hold is committed.
 *
 * Leaves out: the batches in which many tasks are cancelled, the locks of their workspaces (cancel.pml), and
 * pods of workspaces that were created or resumed before the hold: they may still start.
 */

mtype = { ABSENT, OPEN, CANCELLED, COMPLETED };

/* The database. */
bool held;
byte shared;
bool alone;
mtype status[2] = ABSENT;
bool intent[2];
bool resumed;

/* Variables for the properties. */
bool answered;
bool promised;
bool begun_in_hold;
bool resumed_in_hold;
bool ran[2];

/* No task is submitted while a hold is in force. */
ltl no_task_begins_in_a_hold { [] (!begun_in_hold) }
/* No workspace is resumed while a hold is in force. */
ltl no_agent_begins_in_a_hold { [] (!resumed_in_hold) }
/* After a hold with cancel_running is answered, every task that ran when the hold was committed is cancelled. */
ltl hold_cancels_all_that_runs { [] (promised -> ((ran[0] && status[0] == OPEN -> intent[0]) && (ran[1] && status[1] == OPEN -> intent[1]))) }
/* With fair scheduling, a hold is answered. */
ltl hold_is_answered { <> (answered) }

proctype submitter(byte task)
{
    bool refused;
    /* server/evershell/store/holds.py: share_hold */
    atomic { !alone -> shared++ };
    /* server/evershell/store/holds.py: share_hold */
    atomic { true -> refused = held };
    /* server/evershell/core/change.py: require_no_hold */
    atomic {
        if
        :: !refused -> status[task] = OPEN; begun_in_hold = begun_in_hold || held
        :: else
        fi;
        shared-- };
    /* server/evershell/core/task_lifecycle.py: _end */
    atomic { status[task] == OPEN -> status[task] = (intent[task] -> CANCELLED : COMPLETED) }
}

active proctype resuming()
{
    bool refused;
    /* server/evershell/store/holds.py: share_hold */
    atomic { !alone -> shared++ };
    /* server/evershell/store/holds.py: share_hold */
    atomic { true -> refused = held };
    /* server/evershell/core/workspaces.py: resume_workspace */
    atomic {
        if
        :: !refused -> resumed = true; resumed_in_hold = resumed_in_hold || held
        :: else
        fi;
        shared-- }
}

active proctype holding()
{
    /* server/evershell/store/holds.py: hold_org */
    atomic { shared == 0 && !alone -> alone = true };
    /* server/evershell/store/holds.py: hold_org */
    atomic { true ->
        held = true; alone = false; ran[0] = status[0] == OPEN; ran[1] = status[1] == OPEN };
    /* server/evershell/core/cancel_tasks.py: cancel_matching */
    atomic {
        intent[0] = intent[0] || status[0] == OPEN;
        intent[1] = intent[1] || status[1] == OPEN };
    /* server/evershell/core/hold.py: hold_org */
    atomic { true -> answered = true; promised = true };
    /* server/evershell/store/holds.py: release_org */
    atomic { shared == 0 && !alone -> alone = true };
    /* server/evershell/store/holds.py: release_org */
    atomic { true -> held = false; promised = false; alone = false }
}

init
{
    atomic {
        run submitter(0);
        run submitter(1)
    }
}
