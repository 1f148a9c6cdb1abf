-- What a model is told again of its own work, and what that took.

alter table chat_messages add column agent_record jsonb;

comment on column chat_messages.agent_record is
    'What the agent did before this item that the item doesn''t say: calls of tools and what they gave, as the Agents SDK''s input items';

alter table runs add column usage jsonb;

comment on column runs.usage is 'Which model answered, and how many tokens it took; null where no model was called';
