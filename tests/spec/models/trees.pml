/*
 * A tree of three tasks in three workspaces: a root, its child and a grandchild. A second root follows in the
 * workspace of the first one.
 *
 * Covers: submissions of children that race with a cancellation of the tree, named or unnamed; the lock of the tree,
 * the reads under it, a cancellation that finds another current task and begins again.
 *
 * Leaves out: locks of workspaces (cancel.pml), limits of a tree, permissions, signals. The second root gets
 * no child.
 */

#define ROOT 0
#define CHILD 1
#define GRANDCHILD 2
#define SECOND 3
#define NOBODY 4

mtype = { ABSENT, OPEN, COMPLETED, CANCELLED };

/* The database: the lock of the first root's tree, its holder, the tasks, and the first workspace's current task. */
bool locked;
mtype status[4] = ABSENT;
bool intent[4];
byte current = ROOT;

/* Variables for the properties. `promised`: a cancellation of the whole tree was answered. */
bool promised;
bool escaped;
bool other_task;
byte ends[4];

/* After the cancellation of a tree is answered, no task of the tree runs uncancelled, and no task is added. */
ltl no_task_escapes_its_tree { [] (!escaped) }
/* A call that names no task cancels the task that is current while the call holds the locks. */
ltl unnamed_cancels_the_current_task { [] (!other_task) }
/* A task with a recorded cancellation never ends completed. */
ltl cancel_decides_the_end { [] (!(intent[0] && status[0] == COMPLETED) && !(intent[1] && status[1] == COMPLETED) && !(intent[2] && status[2] == COMPLETED)) }
/* With fair scheduling, all tasks of a cancelled tree end. */
ltl tree_ends { [] (promised -> <> (status[ROOT] != OPEN && status[CHILD] != OPEN && status[GRANDCHILD] != OPEN)) }

/* Submits a task whose parent is `task - 1`. */
proctype submitter(byte task)
{
    bool allowed;
    /* server/evershell/store/functions/lock_tree.sql: lock_tree */
    atomic { !locked && status[task - 1] != ABSENT -> locked = true };
    /* server/evershell/store/transitions.py: _lock_parent */
    atomic { true -> allowed = status[task - 1] == OPEN && !intent[task - 1] };
    /* server/evershell/core/task_tree.py: child */
    atomic {
        if
        :: allowed ->
            status[task] = OPEN;
            escaped = escaped || promised
        :: else
        fi;
        locked = false }
}

proctype canceller(bool named)
{
    byte task;
    bool open[3];
again:
    /* server/evershell/store/functions/cancel_tree.sql: cancel_tree */
    atomic { true -> task = (named -> ROOT : current) };
    if
    /* server/evershell/store/functions/cancellation_outcome.sql: cancellation_outcome */
    :: atomic { task == NOBODY -> goto gone }
    /* server/evershell/store/functions/lock_tree.sql: lock_tree */
    :: atomic { task == ROOT && !locked -> locked = true }
    /* server/evershell/store/functions/lock_tree.sql: lock_tree */
    :: atomic { task == SECOND }
    fi;
    /* server/evershell/store/functions/cancel_tree.sql: cancel_tree */
    atomic {
        open[CHILD] = task == ROOT && status[CHILD] == OPEN;
        open[GRANDCHILD] = task == ROOT && status[GRANDCHILD] == OPEN };
    if
    /* server/evershell/store/functions/cancel_tree.sql: cancel_tree */
    :: atomic { !named && current != task ->
        if
        :: task == ROOT -> locked = false
        :: else
        fi;
        open[CHILD] = false; open[GRANDCHILD] = false; goto again }
    /* server/evershell/store/functions/cancel_tasks.sql: cancel_tasks */
    :: atomic { named || current == task ->
        other_task = other_task || (!named && current != task);
        if
        :: status[task] == OPEN -> intent[task] = true
        :: else
        fi;
        if
        :: open[CHILD] && status[CHILD] == OPEN -> intent[CHILD] = true
        :: else
        fi;
        if
        :: open[GRANDCHILD] && status[GRANDCHILD] == OPEN -> intent[GRANDCHILD] = true
        :: else
        fi;
        if
        :: task == ROOT ->
            locked = false;
            promised = true;
            escaped = escaped || (status[CHILD] == OPEN && !intent[CHILD]) ||
                (status[GRANDCHILD] == OPEN && !intent[GRANDCHILD])
        :: else
        fi }
    fi;
gone:
    skip
}

proctype agent(byte task)
{
    do
    /* server/evershell/core/task_lifecycle.py: _end */
    :: atomic { status[task] == OPEN ->
        status[task] = (intent[task] -> CANCELLED : COMPLETED);
        if
        :: task == ROOT -> current = NOBODY
        :: else
        fi }
    /* server/evershell/core/task_lifecycle.py: submit */
    :: atomic { task == ROOT && current == NOBODY && status[SECOND] == ABSENT ->
        status[SECOND] = OPEN; current = SECOND }
    od
}

init
{
    atomic {
        status[ROOT] = OPEN;
        run agent(ROOT);
        run agent(CHILD);
        run agent(GRANDCHILD);
        run submitter(CHILD);
        run submitter(GRANDCHILD);
        run canceller(true);
        run canceller(false)
    }
}
