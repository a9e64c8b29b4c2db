"""A little general English, so that the tokenizer spells other text in few tokens too."""

GENERAL_ENGLISH = (
    "Hello, how are you today? I am fine, thank you very much. Please help me with this photo.",
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "What is happening here? Who is in this photograph, and why are they there together?",
    "I would like to know which of these things you can see, and which ones you cannot see.",
    "There are people, animals, houses, trees, cars, roads, mountains and rivers in the world.",
    "A man and a woman are walking with their children and a small dog along the street.",
    "It was a good day, because the weather was warm and the sky was clear after the rain.",
    "Could you explain in detail, step by step, what this figure means and how it was made?",
    "Yes, of course. No, not really. Maybe. I don't know. I can't see it. It isn't there.",
    "Write a short answer with one word only, then give a longer description of the scene.",
    "First, second, third, last; before, after, between, behind, inside, outside, around, near.",
    "One, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, twenty, hundred.",
    "Black, brown, pink, dark, light, bright, round, long, short, wide, thin, old, new, same.",
    "Look at the picture again and tell me if anything has changed since the last time.",
    "They have been working on the other side of the house since early in the morning.",
    "Some questions have no answer, others have many; this one should be easy for you.",
    "The number of words that people use every day is smaller than you might think.",
    "If you were to draw it, where would you put the first line, and what would come next?",
    "Reading, writing, running, looking, making, taking, coming, going, seeing, thinking, saying.",
    "Every time she said that she would come, he waited for her at the station until evening.",
)
