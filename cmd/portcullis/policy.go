package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"portcullis/attestserver/action"
	"portcullis/attestserver/policy"
	"portcullis/internal/cli"
	"portcullis/internal/journal"
)

func init() { commands = append(commands, policyCommand()) }

func policyCommand() *cli.Command {
	show := &cli.Command{
		Name: "policy show", Args: "[--claims] [--json]",
		Summary: "Print the built-in policy, a file to start an own one from; with --claims what rules can ask about.",
		Example: "portcullis policy show > policy.yaml",
	}
	show.Run = func(_ context.Context, stdio *cli.IO, args []string) error { return policyShow(show, stdio, args) }
	check := &cli.Command{
		Name: "policy check", Args: "FILE [--json]",
		Summary: "Compile a policy: exit 0 when every rule is right, 1 with file, line and what to write instead.",
		Example: "portcullis policy check policy.yaml",
	}
	check.Run = func(_ context.Context, stdio *cli.IO, args []string) error { return policyCheck(check, stdio, args) }
	test := &cli.Command{
		Name: "policy test", Args: "CASES [--policy FILE] [--json]",
		Summary: "Play a table of cases: claims, and the rules and actions that must follow. Exit 1 when one does not hold.",
		Example: "portcullis policy test --policy policy.yaml cases.yaml",
	}
	test.Run = func(_ context.Context, stdio *cli.IO, args []string) error { return policyTest(test, stdio, args) }
	explain := &cli.Command{
		Name: "policy explain", Args: "CLAIMS | --journal FILE [--id ID] [--policy FILE] [--json]",
		Summary: "Say which rules fire and why, part by part: for claims in a file, or for those that an action in attestd's\n" +
			"journal was begun for (the newest, or --id).",
		Example: "portcullis policy explain --journal /var/lib/portcullis/attestd/actions.journal",
	}
	explain.Run = func(_ context.Context, stdio *cli.IO, args []string) error {
		return policyExplain(explain, stdio, args)
	}
	return &cli.Command{Name: "policy", Summary: "What follows from what is known of the PC", Sub: []*cli.Command{show, check, test, explain}}
}

func printJSON(stdio *cli.IO, v any) error {
	enc := json.NewEncoder(stdio.Out)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// policyOf loads an own policy, or the built-in one for "".
func policyOf(file string) (*policy.Policy, error) {
	if file == "" {
		return policy.Default(), nil
	}
	return policy.Load(file)
}

func policyShow(c *cli.Command, stdio *cli.IO, args []string) error {
	fs := cli.NewFlags(c, stdio)
	claims := fs.Bool("claims", false, "the claims: name, type, meaning")
	asJSON := fs.Bool("json", false, "as one JSON object")
	if err := noWords(c, stdio, fs, args); err != nil {
		return err
	}
	type claim struct {
		Name    string `json:"name"`
		Type    string `json:"type"`
		Meaning string `json:"meaning"`
	}
	var list []claim
	for _, r := range policy.Schema() {
		list = append(list, claim{r[0], r[1], r[2]})
	}
	switch {
	case *asJSON && *claims:
		return printJSON(stdio, map[string]any{"claims": list})
	case *asJSON:
		return printJSON(stdio, map[string]any{"policy": policy.DefaultText(), "actions": policy.Actions})
	case *claims:
		for _, x := range list {
			fmt.Fprintf(stdio.Out, "%-12s %-20s %s\n", x.Name, x.Type, x.Meaning)
		}
		return nil
	}
	_, err := fmt.Fprint(stdio.Out, policy.DefaultText())
	return err
}

func policyCheck(c *cli.Command, stdio *cli.IO, args []string) error {
	fs := cli.NewFlags(c, stdio)
	asJSON := fs.Bool("json", false, "one JSON object with every mistake")
	words, err := cli.Parse(c, stdio, fs, args)
	if err != nil {
		return err
	}
	if len(words) != 1 {
		return cli.Usagef("policy check takes one file")
	}
	p, err := policy.Load(words[0])
	rules := 0
	if p != nil {
		rules = len(p.Rules)
	}
	if *asJSON {
		if e := printJSON(stdio, map[string]any{"valid": err == nil, "rules": rules, "mistakes": mistakes(words[0], err)}); e != nil {
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
	_, err = fmt.Fprintf(stdio.Out, "%s: valid, %d rules\n", words[0], rules)
	return err
}

func policyTest(c *cli.Command, stdio *cli.IO, args []string) error {
	fs := cli.NewFlags(c, stdio)
	file := fs.String("policy", "", "the policy; without it the built-in one")
	asJSON := fs.Bool("json", false, "one JSON object")
	words, err := cli.Parse(c, stdio, fs, args)
	if err != nil {
		return err
	}
	if len(words) != 1 {
		return cli.Usagef("policy test takes one file of cases")
	}
	p, err := policyOf(*file)
	if err != nil {
		return err
	}
	cases, err := policy.LoadCases(words[0])
	if err != nil {
		return err
	}
	results, bad := p.Test(cases), 0
	for _, r := range results {
		if !r.OK {
			bad++
		}
		if !*asJSON {
			fmt.Fprintf(stdio.Out, "%-4s %s%s\n", map[bool]string{true: "ok", false: "FAIL"}[r.OK], r.Name, strings.TrimSuffix(": "+r.Problem, ": "))
		}
	}
	if *asJSON {
		err = printJSON(stdio, map[string]any{"policy": p.Name, "ok": bad == 0, "cases": results})
	} else {
		_, err = fmt.Fprintf(stdio.Out, "%d cases, %d failed\n", len(results), bad)
	}
	if err == nil && bad > 0 {
		err = &cli.ExitError{Code: 1}
	}
	return err
}

func policyExplain(c *cli.Command, stdio *cli.IO, args []string) error {
	fs := cli.NewFlags(c, stdio)
	file := fs.String("policy", "", "the policy; without it the built-in one")
	from := fs.String("journal", "", "attestd's journal of actions")
	id := fs.String("id", "", "an action in it")
	asJSON := fs.Bool("json", false, "one JSON object")
	words, err := cli.Parse(c, stdio, fs, args)
	if err != nil {
		return err
	}
	if (len(words) == 1) == (*from != "") || len(words) > 1 || (*id != "" && *from == "") {
		return cli.Usagef("policy explain takes a file of claims, or --journal")
	}
	p, err := policyOf(*file)
	if err != nil {
		return err
	}
	var claims *policy.Claims
	var recorded *action.Record
	if *from == "" {
		claims, err = policy.LoadClaims(words[0])
	} else if recorded, err = findAction(*from, *id); err == nil {
		claims = recorded.Claims
	}
	if err != nil {
		return err
	}
	rules := p.Explain(claims)
	if *asJSON {
		return printJSON(stdio, map[string]any{"policy": p.Name, "action": recorded, "claims": claims, "rules": rules})
	}
	if recorded != nil {
		fmt.Fprintf(stdio.Out, "action %s: %s by rule %s at %s, session %s\n\n", recorded.ID, recorded.Action, recorded.Rule, recorded.Time, recorded.Session)
	}
	for _, r := range rules {
		explainRule(stdio, r)
	}
	return nil
}

func explainRule(stdio *cli.IO, r policy.Explanation) {
	verdict := "no"
	switch {
	case r.Error != "":
		verdict = "no answer: " + r.Error
	case r.True:
		verdict = "yes"
	}
	words := make([]string, len(r.Then))
	for i, a := range r.Then {
		words[i] = string(a)
	}
	dry := ""
	if r.DryRun {
		dry = ", dry run"
	}
	fmt.Fprintf(stdio.Out, "%s (line %d): %s\n  when %s\n", r.Rule, r.Line, verdict, r.When)
	for _, part := range r.Parts {
		fmt.Fprintf(stdio.Out, "    %-6s %s\n", part.Value, part.Text)
	}
	fmt.Fprintf(stdio.Out, "  then %s; hold %s, cooldown %s%s\n", strings.Join(words, ", "), r.Hold, r.Cooldown, dry)
}

// findAction reads the record with which an action began: the newest, or that of id.
func findAction(path, id string) (found *action.Record, err error) {
	_, err = journal.ReadFile(path, func(rec journal.Record) error {
		r, err := action.ParseRecord(rec.Payload)
		if err == nil && r.Claims != nil && (id == "" || r.ID == id) {
			found = &r
		}
		return err
	})
	if err == nil && found == nil {
		err = errors.New("the journal holds no such action")
	}
	return found, err
}
