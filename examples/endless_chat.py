"""Chat in constant memory: each turn is prefilled once, through the model's chat template."""

import sys

from lacache import Engine, Ladder, Sampling
from lacache.engine.conversation import ChatTemplate, Conversation
from lacache.models import load_model

loaded = load_model("default")
model, tokenizer = loaded.model, loaded.tokenizer
template = ChatTemplate(tokenizer, system="You answer in one short sentence.")

# As many attention sinks as the system prompt has tokens, so it is never evicted.
ladder = Ladder(sinks=template.num_pinned, recent=32, evict_batch=8)
engine = Engine(model, budget=96, policy=ladder)
chat = Conversation(lambda: engine.open(Sampling(temperature=0.7, seed=1)), template)

questions = sys.argv[1:] or ["What is a ladder?", "And what is a cache?", "Which one is taller?"]
for question in questions:
    print(f"> {question}")
    for token in chat.reply(question, max_new_tokens=60):
        print(tokenizer.decode(token), end="", flush=True)
    print()
print(chat.report())
