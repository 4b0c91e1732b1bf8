//! The gateways of an entry, in SQL.

use crate::database::Fragment;

/// The gateway of the latest call. Calls of earlier versions have none.
pub(crate) const CALLED: Fragment = Fragment::new("called", "coalesce(gateway, 'default')");

/// Whether the gateway of a receipt was called for an entry, last or earlier. A receipt without a
/// gateway is one of any. Calls of earlier versions are found only if they were the latest.
pub(crate) const HAS_CALLED: Fragment = Fragment::pair(
    "has_called",
    "(:gateway = '' OR (state || '' <> 'pending' AND {called} = :gateway)
        OR attempts @> jsonb_build_array(jsonb_build_object('gateway', :gateway::text)))",
    "(:gateway = '' OR (state <> 'pending' AND {called} = :gateway)
        OR EXISTS (SELECT 1 FROM json_each(attempts) WHERE value ->> 'gateway' = :gateway))",
);

/// `maybe_taken` with the gateway of the latest call, once.
pub(crate) const WITH_CALLED: Fragment = Fragment::pair(
    "with_called",
    "concat_ws(' ', maybe_taken, CASE
        WHEN strpos(concat(' ', maybe_taken, ' '), ' ' || {called} || ' ') = 0 THEN {called}
    END)",
    "ltrim(coalesce(maybe_taken, '') || iif(
        instr(' ' || coalesce(maybe_taken, '') || ' ', ' ' || {called} || ' ') = 0,
        ' ' || {called}, ''))",
);

/// `attempts` with the latest call, whose consumer recorded no outcome.
pub(crate) const INTERRUPTED: Fragment = Fragment::pair(
    "interrupted",
    "attempts || jsonb_build_object('attempt', attempt, 'gateway', {called},
        'outcome', 'ambiguous', 'detail', 'interrupted', 'called_at', called_at,
        'ended_at', now())",
    "json_insert(attempts, '$[#]', json_object('attempt', attempt, 'gateway', {called},
        'outcome', 'ambiguous', 'detail', 'interrupted', 'called_at', called_at,
        'ended_at', clock.now))",
);

/// Whether a gateway may have the message: an earlier call had no clear outcome, or a call was
/// interrupted. Versions that knew one gateway recorded only the outcome.
pub(super) const IN_DOUBT: Fragment = Fragment::pair(
    "in_doubt",
    "(maybe_taken IS NOT NULL OR attempts @> '[{\"outcome\": \"ambiguous\"}]'
        OR (state || '' = 'calling' AND epoch <> :epoch))",
    "(maybe_taken IS NOT NULL OR (state = 'calling' AND epoch <> :epoch)
        OR EXISTS (SELECT 1 FROM json_each(attempts) WHERE value ->> 'outcome' = 'ambiguous'))",
);

/// Whether an entry is one of `:ids` and may be called for under the lease: it is pending, its call was
/// interrupted, or its grant was not heard.
pub(super) const NAMED: Fragment = Fragment::pair(
    "named",
    "group_id = :group AND message_id = ANY (:ids::uuid[])
      -- A statement that we gave up may be done late, after later ones. It does nothing then.
      AND (epoch IS DISTINCT FROM :epoch OR turn < :turn)
      AND (state || '' = 'pending'
          -- a call that was begun under this lease was not made: see `DeliveryLedger::start`
          OR (state || '' = 'calling' AND (due_at <= now() OR epoch = :epoch)))",
    "group_id = :group AND message_id IN (SELECT value FROM json_each(:ids))
  -- A statement that we gave up may be done late, after later ones. It does nothing then.
  AND (epoch IS NOT :epoch OR turn < :turn)
  -- a call that was begun under this lease was not made: see `DeliveryLedger::start`
  AND (state = 'pending' OR (state = 'calling' AND (due_at <= clock.now OR epoch = :epoch)))",
);
