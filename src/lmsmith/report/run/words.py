"""The report's words: each stage, who the labeler was, how to read each number."""

from __future__ import annotations

STAGE_WORDS: dict[str, tuple[str, str]] = {
    "data": ("Data", "Cleans the text and splits it so that nothing is tested on itself"),
    "tokenizer": ("Tokenizer", "Learns which pieces to cut text into"),
    "pretrain": ("Pretraining", "Learns to predict the next token of raw text"),
    "masked_lm": ("Encoder (BERT)", "Learns to fill in words that are hidden in a text"),
    "base": ("Base model", "A model made before, which the stages below go on from"),
    "translate": ("Translation", "Learns to write each sentence in another language"),
    "finetune": ("Classifier", "Learns to label, score or choose from labelled examples"),
    "flan": ("Instructions", "Writes labelled tasks out in templates, and holds clusters out"),
    "sft": ("Fine-tuning (SFT)", "Learns to answer from demonstrations"),
    "zero_shot": ("Unseen tasks", "Ranks the answers of tasks never learnt, before and after"),
    "distil": ("Student", "Learns from a larger model, its teacher, instead of the text alone"),
    "emulator": ("Emulator", "A model with some of its layers, on which others tune the rest"),
    "offsite": ("Offsite-tuning", "Tunes the first and last layers on an emulator of the model"),
    "rankings": ("Rankings", "Collects candidate replies and ranks them"),
    "reward": ("Reward model", "Learns to score a reply the way the rankings do"),
    "ppo": ("PPO", "Practises replies that the reward model scores higher"),
    "judge_rankings": (
        "Judge's rankings",
        "Ranks replies to conversations no other stage has seen",
    ),
    "judge": ("Judge", "A second reward model, kept apart to measure PPO fairly"),
    "evaluate": ("Evaluation", "Measures every stage on the test split"),
}
"""A stage's title, and a sentence on what it does that a newcomer understands."""

REPLIERS: dict[str, str] = {
    "human": "The person",
    "pretrain": "Pretrained",
    "base": "Base",
    "sft": "SFT",
    "distil": "Student",
    "ppo": "PPO",
}
"""Who may have written a reply, in the order in which they stand side by side."""


GLOSSARY: dict[str, tuple[str, str]] = {
    "Bits per byte": (
        "How many bits the model needs, on average, for one byte of text it has not seen. Lower "
        "is better; 8 is knowing nothing. It counts bytes and not tokens, so models with "
        "different tokenizers can be compared.",
        "Gao et al. 2020, The Pile, §3.1",
    ),
    "Reply perplexity": (
        "Among how many equally likely tokens the model hesitates, on average, at each token of "
        "the person's own reply. Lower is better.",
        "Jelinek et al. 1977; computed as in Radford et al. 2019, GPT-2",
    ),
    "F1, Matthews, Pearson, Spearman": (
        "GLUE's measures. F1 is the harmonic mean of precision and recall of one label; Matthews' "
        "correlation is 0 for a guess, however rare a label is; the last two are correlations of "
        "predicted numbers, or of their ranks, with the true ones.",
        "Wang et al. 2019, GLUE, table 1",
    ),
    "Reward": (
        "The reward model's score of a reply. Only differences mean something: by the model's own "
        "reckoning a reply that scores 1 more is preferred 73 times in 100. Zero is the average "
        "demonstration.",
        "Ouyang et al. 2022, InstructGPT, §3.5",
    ),
    "Reward model accuracy": (
        "How often the reward model orders two replies as the labeler did; ties are not counted. "
        "A coin reaches 50 %. Read it beside “the longer wins” and “the likelier wins”: a reward "
        "model that does not beat these has learned little.",
        "Stiennon et al. 2020, Learning to summarize, §4.3; Ouyang et al. 2022",
    ),
    "Calibration error": (
        "How far, on average, the stated probability that one reply beats another is from how "
        "often it really does. Zero is perfect.",
        "Guo et al. 2017, On Calibration of Modern Neural Networks",
    ),
    "Judge": (
        "A second reward model, trained from the pretrained model on conversations that no other "
        "stage has seen. PPO never optimised it, so it notices when PPO merely learns to please "
        "the first one.",
        "After the gold reward model of Gao, Schulman, Hilton 2022, §2",
    ),
    "Win rate": (
        "How often the judge prefers PPO's reply to SFT's for the same prompt; ties count half. "
        "The interval holds the true rate 95 times in 100 if the prompts were drawn again.",
        "Ouyang et al. 2022; interval: Efron 1979, the bootstrap",
    ),
    "Length-controlled win rate": (
        "The win rate there would be if both wrote equally long replies. Far below the raw one "
        "means that PPO won by length.",
        "Dubois et al. 2024, Length-Controlled AlpacaEval",
    ),
    "KL": (
        "How far the policy has moved from the SFT model, in nats per reply, summed over its "
        "tokens. It should grow slowly and stay within its budget; below 0 for long is a fault "
        "of the sampling or of the log-probabilities.",
        "Ziegler et al. 2019, §2.1; Ouyang et al. 2022, equation 2",
    ),
    "Entropy": (
        "How undecided the policy is when it picks a token. A fall to near 0 is a collapse: it "
        "has begun to say the same thing to everyone.",
        "Schulman et al. 2017, PPO, §5",
    ),
    "Clip fraction": (
        "The share of tokens whose probability changed by more than the clip range in one "
        "update, and whose gradient was therefore cut off. A few per cent is usual; above "
        "30 % the steps are too big.",
        "Schulman et al. 2017, PPO, §3",
    ),
    "Reward against KL": (
        "What was gained for how far the model moved. When the reward model's curve rises and "
        "the judge's falls, PPO is exploiting the reward model's mistakes.",
        "Gao, Schulman, Hilton 2022, Scaling Laws for Reward Model Overoptimization",
    ),
    "Alignment tax": (
        "What the later stages cost in predicting raw text: the rise in bits per byte from the "
        "pretrained model to SFT and PPO. PPO-ptx exists to keep it small.",
        "Ouyang et al. 2022, §3.5 and §4.2",
    ),
    "Share of peak": (
        "Arithmetic done in training over the most this machine did in a measured matrix product.",
        "As MFU in Chowdhery et al. 2022, PaLM, appendix B",
    ),
}
"""How to read each number of the report, and its source."""


def stage_title(stage: str) -> str:
    """The title of a stage; its name where it is none of the pipeline's."""
    return STAGE_WORDS.get(stage, (stage, ""))[0]


def labeler_sentence(labeler: str | None) -> str:
    """A plain sentence on who ranked the replies; ``labeler`` None when not known."""
    if labeler is None:
        return (
            "The rankings do not say who their labeler is; the reward model can be no better "
            "than that labeler."
        )
    key = labeler.lower().replace("-", "_").replace(" ", "_")
    if "human_reply" in key or "human_first" in key or "reply_first" in key:
        return (
            "No person ranked replies for this run. The labeler is a rule "
            f"({labeler}): of each prompt's candidates the person's own reply "
            "ranks first; the model's samples, and a real reply taken from another conversation, "
            "rank below, tied among themselves. A high reward therefore means “reads like the "
            "reply the person really gave”, not “is helpful, honest and harmless”."
        )
    return (
        f"The replies were ranked by the labeler named “{labeler}”. A high reward means “this "
        "labeler would prefer it”, no more."
    )


def judge_sentence(labeler: str | None, judges_labeler: str | None) -> str:
    """The kind of judge, and whose labels it learned from."""
    sentence = (
        "The judge is itself a model: a reward model trained apart, from the pretrained model, on "
        "conversations that no other stage has seen. PPO could not learn to flatter it, but it is "
        "not a person"
    )
    if judges_labeler is None:
        return f"{sentence}."
    if judges_labeler == labeler:
        return f"{sentence}, and it learned from the same labeler as the reward model."
    return f"{sentence}; it learned from the labeler named “{judges_labeler}”."
