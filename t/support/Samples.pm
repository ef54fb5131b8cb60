package Samples;

# Copyright (C) the ngx_http_kontext_module authors
#
# The sample answers of all formats, and which of them may have an ad.

use strict;
use warnings;

use Exporter 'import';
our @EXPORT = qw(openai_samples other_samples);


my %openai = (
    'openai-chat.sse'                 => 1,
    'openai-chat-azure.sse'           => 1,
    'openai-chat-crlf.sse'            => 1,
    'openai-chat-llamacpp.sse'        => 1,
    'openai-chat-n2.sse'              => 1,
    'openai-chat-openrouter.sse'      => 1,
    'openai-chat-split-surrogate.sse' => 1,
    'openai-chat-vllm.sse'            => 1,
    'openai-chat-error.sse'           => 0,
    'openai-chat-tools.sse'           => 0,
    'openai-chat.response.json'       => 1,
    'openai-chat-tools.response.json' => 0,
);

my %others = (
    openai_responses => {
        'openai-responses.sse'           => 1,
        'openai-responses-failed.sse'    => 0,
        'openai-responses-tools.sse'     => 0,
        'openai-responses.response.json' => 1,
    },
    anthropic => {
        'anthropic.sse'                => 1,
        'anthropic-crlf.sse'           => 1,
        'anthropic-error.sse'          => 0,
        'anthropic-thinking-tools.sse' => 0,
        'anthropic.response.json'      => 1,
    },
    ollama => {
        'ollama.ndjson'        => 1,
        'ollama-error.ndjson'  => 0,
        'ollama-tools.ndjson'  => 0,
        'ollama.response.json' => 1,
    },
    ollama_generate => {
        'ollama-generate.ndjson' => 1,
    },
    gemini => {
        'gemini.sse'        => 1,
        'gemini-tools.sse'  => 0,
        'gemini-array.json' => 1,
    },
    gemini_whole => {
        'gemini.response.json' => 1,
    },
    ai_sdk_ui => {
        'ai-sdk-ui.sse'       => 1,
        'ai-sdk-ui-tools.sse' => 1,
        'ai-sdk-ui-error.sse' => 0,
    },
);


sub openai_samples {
    return map { $_ => { format => 'openai_chat', ad => $openai{$_} } }
               keys %openai;
}


sub other_samples {
    return map {
        my $format = $_;

        map { $_ => { format => $format, ad => $others{$format}{$_} } }
            keys %{$others{$format}};
    } keys %others;
}


1;
