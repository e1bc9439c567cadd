package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"portcullis/internal/cli"
	"portcullis/internal/config"
)

func init() { commands = append(commands, configCommand()) }

func configCommand() *cli.Command {
	check := &cli.Command{
		Name: "config check", Args: "[FILE] [--json]",
		Summary: "Check the configuration file: exit 0 when every line is right, 1 with file, line and what to write instead.",
		Example: "portcullis config check /etc/portcullis/portcullis.yaml",
	}
	check.Run = func(ctx context.Context, stdio *cli.IO, args []string) error { return configCheck(check, stdio, args) }
	example := &cli.Command{
		Name: "config example", Summary: "Print a whole configuration file with every key explained.",
		Example: "portcullis config example > portcullis.yaml",
	}
	example.Run = func(ctx context.Context, stdio *cli.IO, args []string) error {
		fs := cli.NewFlags(example, stdio)
		if _, err := cli.Parse(example, stdio, fs, args); err != nil {
			return err
		}
		_, err := fmt.Fprint(stdio.Out, config.Example("the line of your .pub file"))
		return err
	}
	return &cli.Command{Name: "config", Summary: "The one configuration file of a Pi", Sub: []*cli.Command{check, example}}
}

// mistake is one line of the --json report.
type mistake struct {
	File    string `json:"file"`
	Line    int    `json:"line,omitempty"`
	Key     string `json:"key,omitempty"`
	Problem string `json:"problem"`
	Advice  string `json:"advice,omitempty"`
}

func configCheck(c *cli.Command, stdio *cli.IO, args []string) error {
	fs := cli.NewFlags(c, stdio)
	asJSON := fs.Bool("json", false, "one JSON object with every mistake")
	words, err := cli.Parse(c, stdio, fs, args)
	if err != nil {
		return err
	}
	path := config.DefaultPath
	switch len(words) {
	case 0:
	case 1:
		path = words[0]
	default:
		return cli.Usagef("config check takes one file")
	}
	_, err = config.Load(path)
	if *asJSON {
		report := struct {
			Valid    bool      `json:"valid"`
			Mistakes []mistake `json:"mistakes"`
		}{err == nil, mistakes(path, err)}
		enc := json.NewEncoder(stdio.Out)
		if e := enc.Encode(report); e != nil {
			return e
		}
		if err != nil {
			return &cli.ExitError{Code: 1}
		}
		return nil
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(stdio.Out, "%s: valid\n", path)
	return err
}

func mistakes(path string, err error) []mistake {
	out := []mistake{}
	if err == nil {
		return out
	}
	all := []error{err}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		all = joined.Unwrap()
	}
	for _, one := range all {
		var e *config.Error
		if errors.As(one, &e) {
			out = append(out, mistake{e.File, e.Line, e.Key, e.Problem, e.Advice})
		} else {
			out = append(out, mistake{File: path, Problem: one.Error()})
		}
	}
	return out
}
