package policy

import (
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/parser"
)

// Explanation tells why a rule is true, or is not.
type Explanation struct {
	Rule     string   `json:"rule"`
	Line     int      `json:"line"`
	When     string   `json:"when"`
	True     bool     `json:"true"`
	Error    string   `json:"error,omitempty"`
	Then     []Action `json:"then"`
	Hold     string   `json:"hold"`
	Cooldown string   `json:"cooldown"`
	DryRun   bool     `json:"dry_run,omitempty"`
	Parts    []Part   `json:"parts"`
}

// Part is one operand of the ands and ors of a condition, with its value: true,
// false, or the error that it ends in.
type Part struct {
	Text  string `json:"text"`
	Value string `json:"value"`
}

// Explain asks every rule and each part of its condition.
func (p *Policy) Explain(claims *Claims) (out []Explanation) {
	for _, o := range p.Evaluate(claims) {
		r := o.Rule
		e := Explanation{Rule: r.Name, Line: r.Line, When: r.When, True: o.True, Then: r.Then, Hold: r.Hold.String(),
			Cooldown: r.Cooldown.String(), DryRun: r.DryRun, Parts: []Part{}}
		if o.Err != nil {
			e.Error = o.Err.Error()
		}
		for _, text := range r.cond.parts() {
			e.Parts = append(e.Parts, valueOf(text, claims))
		}
		out = append(out, e)
	}
	return out
}

func valueOf(text string, claims *Claims) Part {
	c, err := compile(text)
	if err != nil {
		return Part{text, err.Error()}
	}
	ok, err := c.eval(claims)
	switch {
	case err != nil:
		return Part{text, err.Error()}
	case ok:
		return Part{text, "true"}
	}
	return Part{text, "false"}
}

// parts are the operands of the ands and ors at the top of the condition; none
// where it is a single one.
func (c *condition) parts() (out []string) {
	native := c.ast.NativeRep()
	var walk func(e ast.Expr)
	walk = func(e ast.Expr) {
		if e.Kind() == ast.CallKind {
			if f := e.AsCall().FunctionName(); f == operators.LogicalAnd || f == operators.LogicalOr {
				for _, a := range e.AsCall().Args() {
					walk(a)
				}
				return
			}
		}
		if text, err := parser.Unparse(e, native.SourceInfo()); err == nil {
			out = append(out, text)
		}
	}
	walk(native.Expr())
	if len(out) == 1 {
		return nil
	}
	return out
}
