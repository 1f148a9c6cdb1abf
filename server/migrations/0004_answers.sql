-- What a model is told again of its own work, and what that took.

alter table chat_messages add column agent_record jsonb;

comment on column chat_messages.agent_record is
    'What the agent did before this item that no item says: its calls of tools, each with call_id, name, arguments and output';

alter table runs add column usage jsonb;

comment on column runs.usage is 'Which model answered, and how many tokens it took; null where no model was called';
