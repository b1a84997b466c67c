"""Text <-> tokens: one tokenizer over Hugging Face `tokenizers`, and its loaders, one file a format."""
